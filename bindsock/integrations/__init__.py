"""Small modules for libraries that need one. Each imports its library; import the one you need."""
