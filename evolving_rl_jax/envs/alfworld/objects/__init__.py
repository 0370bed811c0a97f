"""Games split by what their tasks are about: which objects are trained on, what is known of the others."""
