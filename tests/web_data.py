"""Doubles of web tasks: official JSON written by hand, small generated sites, a protected archive."""

import io
import json
import struct
import zlib

from evolving_rl_jax.envs.mind2web.sites import SitesSpec

SMALL = SitesSpec(
    num_train_sites=4,
    tasks_per_site=3,
    num_test_task=4,
    num_test_sites=4,
    tasks_per_test_site=2,
    num_warmstart_sites=4,
    tasks_per_warmstart_site=3,
)


def action(html, op="CLICK", value="", nodes=("2",), **changes):
    return {
        "action_uid": "u",
        "raw_html": "",
        "cleaned_html": html,
        "operation": {"op": op, "original_op": op, "value": value},
        "pos_candidates": [
            {"tag": "a", "is_original_target": True, "backend_node_id": n} for n in nodes
        ],
        "neg_candidates": [],
        **changes,
    }


FORM = (
    '<html><input backend_node_id="2" aria-label="City"/><button backend_node_id="3">Search</button>'
    '<button backend_node_id="4">Help</button></html>'
)


def official(name="t1", **changes):
    """A task of three steps on one page: TYPE Oslo, CLICK Search, HOVER Help."""
    return {
        "annotation_id": name,
        "confirmed_task": f"Find a room in Oslo ({name})",
        "website": "rooms",
        "domain": "Travel",
        "subdomain": "Hotel",
        "action_reprs": [
            "[textbox]  City -> TYPE: Oslo",
            "[button]  Search -> CLICK",
            "[button]  Help -> HOVER",
        ],
        "actions": [
            action(FORM, "TYPE", "Oslo"),
            action(FORM, nodes=("3",)),
            action(FORM, "HOVER", nodes=("4",)),
        ],
        **changes,
    }


def write_split(folder, split, tasks, number=0):
    path = folder / split / f"{split}_{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def zipcrypto(members, password):
    """A zip archive whose members are encrypted the traditional way, which zipfile cannot write."""
    out, directory = io.BytesIO(), b""
    for name, data in members.items():
        crc, offset = zlib.crc32(data), out.tell()
        body = _encrypt(b"0123456789a" + bytes([crc >> 24]) + data, password)
        fields = struct.pack("<HHHHHIIIH", 20, 1, 0, 0, 33, crc, len(body), len(data), len(name))
        out.write(b"PK\x03\x04" + fields + struct.pack("<H", 0) + name.encode() + body)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields
        directory += struct.pack("<HHHHII", 0, 0, 0, 0, 0, offset) + name.encode()
    start = out.tell()
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), start, 0)
    return out.getvalue() + directory + b"PK\x05\x06" + end


def _encrypt(data, password):
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte):
        keys[0] = zlib.crc32(bytes([byte]), keys[0] ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = zlib.crc32(bytes([keys[1] >> 24]), keys[2] ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    for byte in password:
        update(byte)
    result = bytearray()
    for byte in data:
        mask = (keys[2] | 2) & 0xFFFF
        result.append(byte ^ (mask * (mask ^ 1) >> 8) & 0xFF)
        update(byte)
    return bytes(result)
