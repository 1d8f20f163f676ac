"""The worker's models for clients of Text Embeddings Inference, Cohere, Jina and OpenAI."""
