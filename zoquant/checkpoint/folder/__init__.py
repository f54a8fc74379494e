"""Checkpoint folders as transformers writes them: config.json and tensors in safetensors files, one or many."""

from zoquant.checkpoint.folder.format import FolderFormat
from zoquant.checkpoint.folder.matrix import StoredMatrix
from zoquant.checkpoint.folder.reading import Folder, open_folder
from zoquant.files.tensors import StoredTensor

__all__ = ["Folder", "FolderFormat", "StoredMatrix", "StoredTensor", "open_folder"]
