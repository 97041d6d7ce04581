"""What was carried here, as Python can import it."""

import gzip
import os
import shutil
import zipfile


def unpack(peers_dir, work):
    """Carried files -> an importable tree: wheels are unzipped, the .so gunzipped, a cache placed."""
    root = os.path.join(work, "peers")
    site = os.path.join(root, "site")
    os.makedirs(site, exist_ok=True)
    for name in sorted(os.listdir(peers_dir)) if os.path.isdir(peers_dir) else []:
        path = os.path.join(peers_dir, name)
        try:
            if name.endswith(".whl"):
                with zipfile.ZipFile(path) as z:
                    z.extractall(site)
            elif os.path.isdir(path):
                shutil.copytree(path, os.path.join(root, name), dirs_exist_ok=True)
        except Exception as e:
            print(f"cannot unpack {name}: {e}", flush=True)
    so = os.path.join(root, "vllm", "_moe_C.so")
    if os.path.exists(so + ".gz"):
        with gzip.open(so + ".gz") as src, open(so, "wb") as dst:
            shutil.copyfileobj(src, dst, 1 << 20)
    return root


def find_cuda_home():
    for c in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if c and os.path.exists(os.path.join(c, "bin", "nvcc")):
            return c
    nvcc = shutil.which("nvcc")
    if nvcc:
        return os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    return next((p for p in ("/usr/local/cuda", "/opt/cuda") if os.path.exists(p + "/bin/nvcc")), None)
