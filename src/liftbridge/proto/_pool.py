"""The descriptor pool of liftbridge's own messages.

Every Liftbridge client registers a package called `proto` with the same message names in protobuf's default
pool. Ours are registered here, so that a program may use this package and another client side by side.
"""

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()
