"""What a recipe says: its sections, its text, its mistakes."""
