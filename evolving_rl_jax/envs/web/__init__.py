"""Web pages as an agent reads and uses them: shared by the benchmarks that are played on pages.

``markup``, ``roles``, ``labels``, ``contexts`` and ``page`` make elements of HTML, ``snapshot`` shows them
within a budget that ``token_count`` counts, ``observation`` puts task, earlier actions and page together,
``actions`` reads what is to be done, ``texts`` has both prompt forms.
Must not import: any benchmark's folder, or anything outside ``envs``, ``config``, ``files`` and ``types``.
"""
