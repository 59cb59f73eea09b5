"""Which allocation of sparsity is best, and whether alpha tells more than a block's depth."""
