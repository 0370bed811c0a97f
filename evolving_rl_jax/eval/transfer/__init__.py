"""Somebody else's policy with our skills: an HF folder on our engine, or a chat endpoint.

``run`` is the command, ``play`` the panel and its result, ``chat`` plays episodes over HTTP, ``client`` asks
the endpoint and trusts it with nothing.  The HTTP side never imports jax.
"""
