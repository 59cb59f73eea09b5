"""An allocation in the words of other tools: one module per tool. JSON is ``Allocation.save``. No torch."""
