"""The inbox: stores events and applies them."""
