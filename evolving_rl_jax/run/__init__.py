"""What a run is: its parts, its folder, its hosts.

Lives here what training and evaluation share: ``parts`` (games, workers, tokenizer, prompts), ``engine``,
``environments`` and ``skills`` made from the configuration, ``folder`` (names of files, the lock), ``weights``
and ``policy`` (checkpoints read back), ``hosts`` and ``preemption`` (several processes, notices), ``console``
and ``doctor``.  Each module is imported by its name; all of them may be.  Nothing here plays a panel, trains
or draws: no import from ``record``, ``eval``, ``report``, ``train`` or ``cli``.  Files are put in place by
`evolving_rl_jax.files`, which lies below, since environments and skills write too.
"""
