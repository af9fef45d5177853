"""The built-in prefix cache and the kit's reference pass the conformance cases."""

from plugserve.plugins.prefix_cache.lru_cache import make_block_hash_cache
from plugserve.testing import PrefixCacheConformance
from plugserve.testing.contexts import prefix_cache_context
from plugserve.testing.reference_prefix_cache import ReferencePrefixCache


class TestBlockHash(PrefixCacheConformance):
    def make_prefix_cache(self):
        return make_block_hash_cache(prefix_cache_context())


class TestReference(PrefixCacheConformance):
    def make_prefix_cache(self):
        return ReferencePrefixCache()
