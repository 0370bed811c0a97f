"""Mind2Web: annotated web tasks (arXiv 2306.06070) and sites generated in their format, replayed offline.

All that is particular to web tasks lies here as text; ``benchmark`` says it to everything above.  ``env``
plays on pages that ``envs.web`` reads, ``official``, ``index``, ``store`` and ``records`` keep the data,
``sites`` and ``tasks`` generate it, ``teacher`` and ``texts`` are for policies.
Must not import: other benchmarks, or anything outside ``envs``, ``config``, ``files`` and ``types``.
"""
