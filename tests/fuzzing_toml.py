"""Plain data as TOML, for mutated configurations: whatever cannot be written is left out."""

import json


def as_toml(data, prefix=""):
    """Tables of the data, nested ones behind plain values."""
    plain, tables = [], []
    for name, value in data.items() if isinstance(data, dict) else ():
        key = json.dumps(name)
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            tables.append(f"[{path}]\n{as_toml(value, path)}")
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            tables += [f"[[{path}]]\n{as_toml(one, path)}" for one in value]
        elif (text := _value(value)) is not None:
            plain.append(f"{key} = {text}")
    return "\n".join([*plain, *tables]) + "\n"


def _value(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if abs(value) < 10**300 else "1" + "0" * 400
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(text for text in map(_value, value) if text is not None) + "]"
    return None
