"""What a sweep file asks: its settings, the runs that follow from it, and what they cost."""
