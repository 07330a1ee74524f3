"""Columns to a serialized `tf.Example`, by the protobuf package: TensorFlow is not needed for it.

The message is described here as in tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np


def serialize(columns: Mapping[str, np.ndarray | Sequence[bytes]]) -> bytes:
    """The tf.Example of name -> floats, integers (as float32 and int64) or a list of bytes."""
    example = _message()()
    for name, values in columns.items():
        feature = example.features.feature[name]
        if not isinstance(values, np.ndarray):
            feature.bytes_list.value.extend(values)
        elif values.dtype.kind == "f":
            feature.float_list.value.extend(values.reshape(-1).tolist())
        else:
            signed = values.view(np.int64) if values.dtype == np.uint64 else values
            feature.int64_list.value.extend(signed.reshape(-1).astype(np.int64).tolist())
    return example.SerializeToString(deterministic=True)


@functools.cache
def _message() -> type:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="vla_jax/example.proto", package="vla_jax")
    file.syntax = "proto3"
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, **fields: tuple) -> descriptor_pb2.DescriptorProto:
        made = file.message_type.add(name=name)
        for number, (field, (label, kind, of)) in enumerate(fields.items(), 1):
            entry = made.field.add(name=field, number=number, label=label, type=kind)
            if of:
                entry.type_name = f".vla_jax.{of}"
        return made

    one, many, nested = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED, kinds.TYPE_MESSAGE
    message("BytesList", value=(many, kinds.TYPE_BYTES, None))
    message("FloatList", value=(many, kinds.TYPE_FLOAT, None))
    message("Int64List", value=(many, kinds.TYPE_INT64, None))
    lists = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}
    feature = message("Feature", **{n: (one, nested, of) for n, of in lists.items()})
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", feature=(many, nested, "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=kinds.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=nested, type_name=".vla_jax.Feature")
    message("Example", features=(one, nested, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vla_jax.Example"))
