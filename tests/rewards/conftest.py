"""Helpers of this folder can be imported by its tests."""



from small_checkpoints import (  # noqa: F401
    bert_tokenizer,
    blip_folder,
    clip_folder,
    clip_tokenizer,
    head_tensors,
    images,
    open_clip_file,
)
