"""A local web page to see what reranking does, to judge, measure, tune and compare by."""
