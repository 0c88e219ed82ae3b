from __future__ import annotations

from guard_agent.plugins.disk import DiskSettings, DiskStore
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.contracts.state_machine import STATES, BufferStoreMachine


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


class DiskStoreMachine(BufferStoreMachine):
    def make_store(self, context):
        config = context.config
        settings = DiskSettings(
            max_records=config.max_buffer_records, max_bytes=config.max_buffer_bytes
        )
        return DiskStore(settings, context)


TestDiskStoreStates = DiskStoreMachine.TestCase
TestDiskStoreStates.settings = STATES
