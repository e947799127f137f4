"""One distribution. `pipelines/`, `launch/` and `configs/` are top-level folders here and packages under `torchrec_models`
once installed: names that generic would collide in anyone's site-packages."""

from setuptools import find_packages, setup

MOVED = ("pipelines", "launch", "configs")

packages = find_packages(include=["torchrec_models", "torchrec_models.*"])
package_dir = {}
for folder in MOVED:
    inside = [folder, *(f"{folder}.{p}" for p in find_packages(folder))]
    packages += [f"torchrec_models.{p}" for p in inside]
    package_dir[f"torchrec_models.{folder}"] = folder

setup(packages=packages, package_dir=package_dir)
