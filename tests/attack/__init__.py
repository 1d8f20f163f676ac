"""What hostile roles, clients and workers try, each an assertion that it does not succeed."""
