"""What do real borders cost?"""
