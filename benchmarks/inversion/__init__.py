"""What does a layer of a network still know of its image?"""
