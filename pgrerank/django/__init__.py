"""Django: querysets that search by a reranker, and operations of migrations.

class Document(models.Model):
    objects = RerankerManager()

Document.objects.filter(lang="en").rerank("why is my pool exhausted", reranker="documents", top_k=5)
"""

from pgrerank.django.operations import (
    AlterReranker,
    CreateReranker,
    DropReranker,
    InstallPgrerank,
    RegisterModel,
    UpgradePgrerank,
)
from pgrerank.django.queries import RerankerManager, RerankerQuerySet

__all__ = [
    "AlterReranker",
    "CreateReranker",
    "DropReranker",
    "InstallPgrerank",
    "RegisterModel",
    "RerankerManager",
    "RerankerQuerySet",
    "UpgradePgrerank",
]
