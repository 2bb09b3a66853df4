"""One weight, one image size, tensors: everything that is known of a convolution as a linear map.

Private: what is public stands on the floors above.  Nothing in here knows of modules.
"""
