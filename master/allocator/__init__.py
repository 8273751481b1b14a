"""Who is offered what: no I/O, no clock, exact arithmetic."""

from master.allocator.allocator import Allocation as Allocation
from master.allocator.allocator import Allocator as Allocator
from master.allocator.allocator import AllocatorConfig as AllocatorConfig
