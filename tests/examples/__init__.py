"""Small files in the forms that others distribute."""
