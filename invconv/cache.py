"""Where version 0.1.0 had the cache of a layer: layers that it pickled whole look for it here."""

from invconv.layers.cache import OperatorCache as OperatorCache
