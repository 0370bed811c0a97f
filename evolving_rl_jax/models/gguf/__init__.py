"""GGUF files (of llama.cpp) as what a Hugging Face model folder holds: config, tensors, tokenizer.

Everything here returns what the folder's files would say, so that one reader serves both.  Tensors are
de-quantised by the package ``gguf``, which is imported only when such a file is opened.
"""
