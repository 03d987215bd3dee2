"""The namespace of the ops, which is unique to the build: `_ops` comes with it."""

from ._ops import add_op_namespace_prefix, ops

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")

__all__ = ["NAMESPACE", "ops"]
