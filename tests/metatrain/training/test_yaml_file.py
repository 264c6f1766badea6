"""The strict reader of YAML files."""

import time
from pathlib import Path

from metatrain.training.yaml_file import read_yaml


def test_many_keys_are_read_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("".join(f"k{number}: 1\n" for number in range(30_000)))
    start = time.process_time()
    assert len(read_yaml(path, "recipe")) == 30_000
    assert time.process_time() - start < 10  # 2.4 seconds, nearly all in PyYAML; comparing all pairs of keys takes 17
