"""Worker processes that play environments.

Lives here: the ``pool`` (which requests go where, and what happens when a worker ends), a ``handle`` for each
worker (``local``: in the calling process), the ``process`` itself, how it is started (``spawn``) and which games
keep ending it (``suspects``).  Others import ``pool.EnvPool`` alone.
Must not import: jax, any benchmark's folder (``envs.make`` does).
"""
