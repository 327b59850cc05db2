"""Reads TensorBoard's event files with nothing but Python: an oracle for what we write."""

import struct


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def check(data, stored):
    crc = crc32c(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert struct.unpack("<I", stored)[0] == masked, "a checksum that does not fit"


def records(data):
    while data:
        check(data[:8], data[8:12])
        size = struct.unpack("<Q", data[:8])[0]
        record, rest = data[12:12 + size], data[12 + size:]
        assert len(record) == size and len(rest) >= 4, "a record that is cut off"
        check(record, rest[:4])
        yield record
        data = rest[4:]


def fields(message):
    """[(number, value)] of a protocol buffer: integers, bytes, or the bytes of a fixed number."""
    position, found = 0, []

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            found.append((number, varint()))
            continue
        size = {1: 8, 5: 4}.get(wire) or varint()
        found.append((number, message[position:position + size]))
        assert len(found[-1][1]) == size, "a field that is cut off"
        position += size
    return found


def read(path):
    """The events of a file as dicts: wall_time, step, and version, start or scalars."""
    events = []
    for record in records(path.read_bytes()):
        event = {"step": 0}
        for number, value in fields(record):
            if number == 1:
                event["wall_time"] = struct.unpack("<d", value)[0]
            elif number == 2:
                event["step"] = value
            elif number == 3:
                event["version"] = value.decode()
            elif number == 5:
                values = [dict(fields(item)) for _, item in fields(value)]
                event["scalars"] = {item[1].decode(): struct.unpack("<f", item[2])[0]
                                    for item in values}
            elif number == 7:
                event["start"] = dict(fields(value)) == {1: 1}
        events.append(event)
    return events
