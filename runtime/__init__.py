"""Serving: bundle, tokenizer, video, sessions, gallery, retriever. Never PyTorch."""
