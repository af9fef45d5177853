"""The built-in prefix cache keeps the contract, and so does the kit's reference."""

from plugserve.core.contracts.factories import PluginContext
from plugserve.plugins.prefix_cache.lru_cache import make_block_hash_cache
from plugserve.testing import PrefixCacheConformance
from plugserve.testing.reference_prefix_cache import ReferencePrefixCache


class TestBlockHash(PrefixCacheConformance):
    def make_prefix_cache(self):
        return make_block_hash_cache(PluginContext(options=None, config=None))


class TestReference(PrefixCacheConformance):
    def make_prefix_cache(self):
        return ReferencePrefixCache()
