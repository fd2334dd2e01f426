"""What leaves the machine: cards, the released folder, its examination, the push."""
