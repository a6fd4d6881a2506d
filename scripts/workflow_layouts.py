"""How the example workflows look in ComfyUI's page: names, places, groups, colours and notes."""

from dataclasses import dataclass, field

Place = tuple[int, int, int, int]
"""x, y, width, height."""

MODEL, DATA, TRAIN, COMPARE = ("#2a363b", "#3f5159"), ("#232", "#353"), ("#223", "#335"), ("#323", "#535")
"""Colours of the stages, of ComfyUI's own palette: (title bar, body)."""
NOTE = ("#432", "#653")


@dataclass(frozen=True)
class Layout:
    """One screen of ComfyUI's page at 1920 x 1080 and 70 %: `SCREEN` pixels of the graph."""

    title: str
    places: dict[str, Place]
    note: str
    note_at: Place
    groups: dict[str, Place] = field(default_factory=dict)


SCREEN = (2037, 1137)

_MODELS = "1  Model"
_PHOTOS = "2  Your photos"
_TRAIN = "3  Train"
_COMPARE = "4  Compare"
_HOW = (
    "1. Choose the model files on the left.\n"
    "2. Drop your images on **Loom Dataset**, or name a folder inside ComfyUI's input folder. A caption is a .txt file of the same name.\n"
    "3. Set a **trigger**: the word that will call your subject.\n"
    "4. Press **Run**. Training goes on in the background; the panel shows it.\n"
)
_SAMPLES = "Samples"
_WITH_SAMPLES: dict[str, Place] = {
    "1": (0, 0, 340, 90), "2": (0, 140, 340, 140), "3": (0, 330, 340, 70), "4": (380, 0, 380, 520), "5": (800, 0, 340, 520),
    "6": (0, 500, 340, 110), "7": (800, 640, 340, 400), "8": (1180, 0, 440, 1040),
}  # fmt: skip
"""Three loaders, a sixth node below them, and samples."""
_GROUPS: dict[str, Place] = {
    _MODELS: (-15, -75, 370, 490), _PHOTOS: (365, -75, 790, 610), _SAMPLES: (785, 565, 370, 490), _TRAIN: (1165, -75, 470, 1130),
}  # fmt: skip

LAYOUTS = {
    "demo": Layout(
        title="Try LoRA Loom without a model",
        places={
            "1": (0, 0, 250, 110), "2": (0, 649, 250, 160), "3": (0, 885, 250, 200), "4": (290, 0, 320, 560), "5": (290, 649, 320, 436),
            "6": (650, 0, 430, 676), "7": (650, 720, 430, 90), "8": (650, 870, 430, 215), "9": (1120, 545, 300, 230), "10": (1120, 860, 300, 230),
            "11": (1120, 0, 300, 485), "12": (1460, 0, 560, 530), "13": (1460, 590, 560, 495),
        },
        note="# Start here\nPress **Run**. This trains a tiny model for two minutes on a CPU, and needs no other file.\n\n"
        "- The panel under **Loom Train LoRA** shows the loss and a sample.\n"
        "- **Loom Score** recommends a checkpoint.\n"
        "- **Loom Strip** shows all images; its button opens them as a page.\n\n"
        "Then open the template *Train a LoRA on my photos*.",
        note_at=(0, 160, 250, 400),
        groups={
            "1  Data": (-15, -75, 640, 645), "2  Settings, all optional": (-15, 575, 640, 525),
            "3  Train": (635, -75, 460, 1175), "4  Compare": (1105, -75, 930, 1175),
        },
    ),
    "train_sd": Layout(
        title="Train a LoRA on my photos - SD 1.5 and SDXL",
        places={"1": (0, 0, 340, 100), "2": (380, 0, 380, 520), "3": (800, 0, 340, 520), "4": (1180, 0, 440, 700)},
        note="# Train on your photos\n" + _HOW + "5. Load the LoRA with **Load LoRA**; the panel copies its name.\n\n"
        "For SDXL set the resolution of **Loom Cache** to 1024, for SD 1.5 to 512.",
        note_at=(0, 220, 340, 480),
        groups={_MODELS: (-15, -75, 370, 190), _PHOTOS: (365, -75, 790, 610), _TRAIN: (1165, -75, 470, 790)},
    ),
    "train_flux": Layout(
        title="Train a LoRA on my photos - Flux",
        places={
            "1": (0, 0, 340, 90), "2": (0, 140, 340, 140), "3": (0, 330, 340, 70), "4": (380, 0, 380, 520), "5": (800, 0, 340, 520),
            "6": (800, 640, 340, 170), "7": (1180, 0, 440, 810),
        },
        note="# Train on your photos\n" + _HOW + "\nNot enough VRAM? **Loom Memory** has `quantize`.",
        note_at=(0, 570, 760, 240),
        groups={
            _MODELS: (-15, -75, 370, 490), _PHOTOS: (365, -75, 790, 610), "Memory": (785, 565, 370, 260), _TRAIN: (1165, -75, 470, 900),
        },
    ),
    "train_sdxl": Layout(
        title="Train a LoRA on my photos - SDXL",
        places={"1": (0, 0, 340, 100), "2": (380, 0, 380, 520), "3": (800, 0, 340, 520), "4": (800, 640, 340, 400), "5": (1180, 0, 440, 1040)},
        note="# SDXL and its children\n" + _HOW + "\nOf a v-prediction model whose file does not say so, put **ModelSamplingDiscrete** (v_prediction) between the loader and **Loom Train LoRA**.",
        note_at=(0, 220, 340, 480),
        groups={_MODELS: (-15, -75, 370, 190), _PHOTOS: (365, -75, 790, 610), _SAMPLES: (785, 565, 370, 490), _TRAIN: (1165, -75, 470, 1130)},
    ),
    "train_z_image_turbo": Layout(
        title="Train a LoRA on my photos - Z-Image Turbo",
        places=_WITH_SAMPLES,
        note="# Z-Image Turbo\n" + _HOW + "\nTurbo is distilled to eight steps, which plain training undoes. **Loom Base LoRA** lays the training adapter "
        "(ostris/zimage_turbo_training_adapter) under your LoRA while training only. Use your LoRA on Turbo without it.",
        note_at=(0, 780, 760, 260),
        groups=_GROUPS | {"Training adapter": (-15, 425, 370, 190)},
    ),
    "train_klein": Layout(
        title="Train a LoRA on my photos - FLUX.2 Klein",
        places=_WITH_SAMPLES,
        note="# FLUX.2 Klein\n" + _HOW + "\nTrain on the **base** model, use the LoRA on the distilled one: samples come from that, in four steps. "
        "Training the distilled file gives grey images. Both models must fit into memory; else take the link to `preview_model` out.",
        note_at=(0, 780, 760, 260),
        groups=_GROUPS | {"Samples come from": (-15, 425, 370, 190)},
    ),
    "train_krea2": Layout(
        title="Train a LoRA on my photos - Krea 2",
        places=_WITH_SAMPLES,
        note="# Krea 2\n" + _HOW + "\nTrain on **RAW**, use the LoRA on Turbo: samples come from that, in eight steps. "
        "Both models must fit into memory; else take the link to `preview_model` out.",
        note_at=(0, 780, 760, 260),
        groups=_GROUPS | {"Samples come from": (-15, 425, 370, 190)},
    ),
    "train_wan22": Layout(
        title="Train a LoRA on my photos - Wan 2.2",
        places={
            "1": (0, 0, 300, 90), "2": (0, 140, 300, 90), "3": (0, 280, 300, 120), "4": (0, 450, 300, 70), "5": (340, 0, 320, 520),
            "6": (700, 0, 300, 520), "7": (340, 640, 320, 200), "8": (700, 640, 300, 200), "9": (1040, 0, 450, 1065), "10": (1530, 0, 450, 1065),
        },
        note="# Wan 2.2: two experts, two LoRAs\n" + _HOW + "\nOne run for each expert, one after the other, each on its half of the noise levels: they part at sigma 0.875, "
        "which is timestep 0.7 at shift 3. In use, load each LoRA on its own expert.",
        note_at=(0, 885, 1000, 195),
        groups={
            _MODELS: (-15, -75, 330, 610), _PHOTOS: (325, -75, 690, 610), "Noise levels of each expert": (325, 565, 690, 290),
            _TRAIN: (1025, -75, 970, 1155),
        },
    ),
    "train_qwen_edit": Layout(
        title="Train an edit LoRA - Qwen-Image-Edit",
        places={
            "1": (0, 0, 300, 90), "2": (0, 140, 300, 120), "3": (0, 310, 300, 70), "4": (340, 0, 300, 470), "5": (680, 0, 300, 470),
            "6": (680, 590, 300, 170), "7": (1020, 0, 410, 760), "8": (1020, 820, 410, 90), "9": (1470, 590, 250, 320), "10": (1750, 590, 280, 320),
            "11": (1470, 0, 250, 530), "12": (1750, 0, 280, 530),
        },
        note="# Train an edit\nThe dataset has pairs: the image **after** the edit, and in `references` the image **before** it, "
        "under the same file name. The caption is the instruction.\n\n"
        "1. Choose the model files.\n2. Put both folders into ComfyUI's input folder, and name them.\n"
        "3. Choose an image to try the edit on, at the right.\n4. Press **Run**.",
        note_at=(0, 540, 640, 370),
        groups={
            _MODELS: (-15, -75, 330, 470), "2  Pairs of images": (325, -75, 670, 560), "Memory": (665, 515, 330, 260),
            _TRAIN: (1005, -75, 440, 1000), _COMPARE: (1455, -75, 590, 1000),
        },
    ),
    "train_slider": Layout(
        title="Train a slider - one attribute, both ways",
        places={
            "1": (0, 0, 300, 100), "2": (340, 0, 340, 560), "3": (340, 640, 340, 400), "4": (720, 0, 420, 1040), "5": (1190, 0, 320, 90),
            "6": (1190, 160, 320, 210), "7": (1190, 440, 320, 600), "8": (1550, 0, 470, 1040),
        },
        note="# Train a slider\nA LoRA whose **strength** moves one attribute, both ways. It learns the model's own difference between two prompts; "
        "your images only say where it works, their look is not learnt.\n\n"
        "1. Choose the model.\n2. Name a folder with a dozen images of the class, with captions that do not name the attribute.\n"
        "3. Write both prompts: `slider_positive` and `slider_negative`. Let them differ in the attribute alone.\n4. Press **Run**. "
        "**Loom Strip** shows strengths from -2 to 2.\n",
        note_at=(0, 220, 300, 820),
        groups={
            _MODELS: (-15, -75, 330, 190), _PHOTOS: (325, -75, 370, 1130), _TRAIN: (705, -75, 450, 1130), _COMPARE: (1175, -75, 860, 1130),
        },
    ),
    "strip": Layout(
        title="Compare the checkpoints of a run",
        places={"1": (0, 0, 320, 100), "2": (0, 220, 320, 80), "3": (0, 370, 320, 200), "4": (380, 0, 340, 560), "5": (760, 0, 720, 560)},
        note="Choose the model that the run was trained on, and name the run. **Run** renders every checkpoint with every prompt and seed; "
        "the button under **Loom Strip** opens the result as a page.",
        note_at=(0, 660, 720, 120),
        groups={_MODELS: (-15, -75, 350, 190), "2  Run": (-15, 145, 350, 450), "3  Compare": (365, -75, 1130, 670)},
    ),
    "apg_compare": Layout(
        title="Compare CFG with APG",
        places={
            "1": (0, 0, 320, 100), "2": (0, 220, 320, 80), "3": (0, 370, 320, 200), "4": (380, 0, 320, 230), "5": (380, 330, 320, 290),
            "6": (740, 0, 320, 560), "7": (1100, 0, 640, 560),
        },
        note="Two guidance settings side by side: plain CFG, and adaptive projected guidance, which keeps colours from oversaturating. "
        "Choose the model, name the run, and press **Run**.",
        note_at=(0, 660, 700, 120),
        groups={
            _MODELS: (-15, -75, 350, 190), "2  Run": (-15, 145, 350, 490), "3  Guidance": (365, -75, 350, 710), _COMPARE: (725, -75, 1030, 710),
        },
    ),
}  # fmt: skip

COLOURS = {
    "LoomDemoModel": MODEL, "CheckpointLoaderSimple": MODEL, "UNETLoader": MODEL, "CLIPLoader": MODEL, "DualCLIPLoader": MODEL,
    "VAELoader": MODEL, "LoomDataset": DATA, "LoomCache": DATA, "LoomNetwork": TRAIN, "LoomOptimizer": TRAIN, "LoomMemory": TRAIN, "LoomObjective": TRAIN,
    "LoomValidation": TRAIN, "LoomBaseLora": TRAIN, "LoomTrain": TRAIN, "LoomWait": TRAIN, "LoomRun": TRAIN, "LoadImage": COMPARE,
}  # fmt: skip
"""Colours of nodes by their class; all others compare."""
