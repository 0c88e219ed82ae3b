from __future__ import annotations

from guard_agent.plugins.disk import DiskSettings, DiskStore
from guard_agent.testing.contracts import BufferStoreContract


class TestDiskStoreContract(BufferStoreContract):
    dead_letter_limit = 5

    def make_store(self, context):
        config = context.config
        settings = DiskSettings(
            max_records=config.max_buffer_records,
            max_bytes=config.max_buffer_bytes,
            max_dead_letters=5,
        )
        return DiskStore(settings, context)
