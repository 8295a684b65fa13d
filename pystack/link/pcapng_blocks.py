"""python-pcapng as this project uses it: its scanner and its blocks, made to read every valid file.

The library decodes and encodes everything here. What is changed, and why (python-pcapng 2.1.1):

- Of a packet's, an interface's or a section's options, those that nobody here asks for are left alone. The library
  decodes all that it knows, and thereby fails on an interface with an IPv6 address (``TypeError``), on an unknown
  option that occurs twice (``KeyError``), and on text that is not UTF-8.
- The options that are used are declared with types of ours: the library declares none for if_tsresol, and warns of it.
- Blocks that hold no frames are left alone, for the same reason.
- A frame of no bytes is written; the library takes it for a mistake.

All of that is said in subclasses. The library's own classes stay what they are for others in the process.
"""

from __future__ import annotations

from typing import Any, Final

from pcapng import FileScanner, blocks
from pcapng.exceptions import StreamEmpty, TruncatedFile
from pcapng.structs import (
    TYPE_BYTES,
    TYPE_I64,
    TYPE_U32,
    Option,
    Options,
    OptionsField,
    PacketBytes,
    StructField,
    read_options,
    read_section_header,
    write_bytes_padded,
)

_MAX_INTERFACES: Final = 1 << 16  # an Obsolete Packet Block could name no more; the library needs 1.5 KiB for each


class BadBlockError(Exception):
    """A block that cannot be understood; the text continues a sentence that starts with the file's name."""


class _UsedOptions(OptionsField):
    """The options of a block, without those that ``options_schema`` does not name."""

    def load(self, stream: Any, endianness: str, seen: Any = None) -> Any:  # noqa: ARG002  (the library's signature)
        known = {option.code for option in self.options_schema}
        used = [(code, value) for code, value in read_options(stream, endianness) if code in known]
        return Options(self.options_schema, used, endianness)


class _Frame(PacketBytes):
    """The bytes of a frame, of which there may be none."""

    def load(self, stream: Any, endianness: str, seen: Any) -> Any:
        try:
            return super().load(stream, endianness, seen)
        except (StreamEmpty, TruncatedFile):
            raise BadBlockError(f"has a frame of {seen[self.dependency]} bytes, which cannot be") from None

    def encode(self, packet: Any, stream: Any, endianness: str | None = None) -> None:  # noqa: ARG002  (likewise)
        write_bytes_padded(stream, packet)


def _schema(block: Any, **changed: StructField) -> list[tuple[str, StructField, Any]]:
    """The fields of the library's ``block``, some of them ``changed``."""
    return [(name, changed.get(name, field), default) for name, field, default in block.schema]


class _OfInterface:
    """A packet block that says so when it names an interface that the section does not describe."""

    __slots__ = ()

    @property
    def interface(self: Any) -> Any:
        try:
            return self.section.interfaces[self.interface_id]
        except KeyError:
            raise BadBlockError(f"has a frame of interface {self.interface_id}, which it does not describe") from None


# All may be repeated (the last argument), since the library fails on a repetition to which it objects. Comments are
# bytes, so that one that is not UTF-8 does not cost the frame.
_PACKET: Final = {
    "packet_data": _Frame("captured_len"),
    "options": _UsedOptions([Option(1, "opt_comment", TYPE_BYTES, True), Option(2, "epb_flags", TYPE_U32, True)]),
}


class EnhancedPacket(_OfInterface, blocks.EnhancedPacket):
    """A frame."""

    __slots__ = ()
    schema = _schema(blocks.EnhancedPacket, **_PACKET)


class ObsoletePacket(_OfInterface, blocks.ObsoletePacket):
    """A frame, as files of before 2009 have it; here its flags are called ``epb_flags`` as well."""

    __slots__ = ()
    schema = _schema(blocks.ObsoletePacket, **_PACKET)


class SimplePacket(_OfInterface, blocks.SimplePacket):
    """A frame of the first interface, without a time."""

    __slots__ = ()


class Interface(blocks.InterfaceDescription):
    """An interface."""

    __slots__ = ()
    schema = _schema(
        blocks.InterfaceDescription,
        options=_UsedOptions(
            [
                Option(2, "if_name", TYPE_BYTES, True),
                Option(9, "if_tsresol", TYPE_BYTES, True),
                Option(14, "if_tsoffset", TYPE_I64, True),
            ]
        ),
    )


class Section(blocks.SectionHeader):
    """A section. Of the blocks in it, those that are read here are made of the classes above, others not at all."""

    __slots__ = ()
    schema = _schema(blocks.SectionHeader, options=_UsedOptions([Option(4, "shb_userappl", TYPE_BYTES, True)]))

    def new_member(self, cls: Any, **fields: Any) -> Any:
        """A block of the library's ``cls``, made of the class here that stands for it."""
        if cls not in _OURS:
            return blocks.UnknownBlock(cls.magic_number, b"")
        return super().new_member(_OURS[cls], **fields)

    def register_interface(self, interface: Any) -> None:
        """Number ``interface``, while there is room for it."""
        if len(self.interfaces) == _MAX_INTERFACES:
            raise BadBlockError(f"describes more than {_MAX_INTERFACES} interfaces")
        super().register_interface(interface)


_OURS: Final = {
    blocks.InterfaceDescription: Interface,
    blocks.EnhancedPacket: EnhancedPacket,
    blocks.ObsoletePacket: ObsoletePacket,
    blocks.SimplePacket: SimplePacket,
}


class Scanner(FileScanner):
    """The library's scanner, with our `Section`."""

    __slots__ = ()

    def _read_section_header(self) -> Any:
        found = read_section_header(self.stream)
        return Section(raw=found["data"], endianness=found["endianness"])
