"""The Flower ServerApp: rounds, journal, ledger, results."""
