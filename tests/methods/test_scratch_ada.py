import pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("method", ["ada_ent", "ada_mi"])
@pytest.mark.parametrize("kind", ["plain", "const", "bg"])
def test_full(bench, method, kind):
    if kind == "const":
        for split in ("train", "test"):
            for path in bench.images("toy_b", split):
                Image.new("RGB", (96, 96), (90,) * 3).save(path)
    if kind == "bg":
        for path in bench.out.glob("sources/*/*/model.safetensors"):
            s = load_file(path)
            s["head.weight"].zero_()
            s["head.bias"].fill_(-20)
            save_file(s, path)
    import pandas as pd

    r = bench.run(method, overrides=[f"{method}.epochs=100"])
    f = pd.read_parquet(r.folder / "curve.parquet")
    f = f[f.epoch.isin([0, 1, 100])]
    print(method, kind, f.to_string())
    c = pd.read_parquet(r.folder / "cases-standard.parquet")
    print(c.groupby("structure")["dice"].mean())
