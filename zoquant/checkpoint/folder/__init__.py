"""Checkpoint folders as transformers writes them: config.json and tensors in safetensors files, one or many."""

from zoquant.checkpoint.folder.checkpoint import Folder, open_folder
from zoquant.checkpoint.folder.format import FolderFormat, Layer
from zoquant.files.tensors import StoredTensor

__all__ = ["Folder", "FolderFormat", "Layer", "StoredTensor", "open_folder"]
