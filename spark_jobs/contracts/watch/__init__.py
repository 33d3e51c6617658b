"""What can be waited for: questions to the ledger, whose answers say what was seen."""
