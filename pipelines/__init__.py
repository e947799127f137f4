"""The flows: files, processes, time. Imported as `torchrec_models.pipelines`."""

if __name__ != "torchrec_models.pipelines":
    raise ImportError("import torchrec_models.pipelines, not pipelines: importing it twice would make two Batch classes")
