"""Write images with boxes in the layouts of PASCAL VOC and COCO."""

import json

from images_on_disk import encode, random_image


def voc_xml(objects, name="image.jpg"):
    """Return an XML file of objects, as (class, xmin, ymin, xmax, ymax, difficult)."""
    entries = "".join(
        f"""
    <object>
        <name>{kind}</name>
        <pose>Left</pose>
        <truncated>1</truncated>
        <difficult>{difficult}</difficult>
        <bndbox>
            <xmin>{x1}</xmin>
            <ymin>{y1}</ymin>
            <xmax>{x2}</xmax>
            <ymax>{y2}</ymax>
        </bndbox>
        <part>
            <name>head</name>
            <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
        </part>
    </object>"""
        for kind, x1, y1, x2, y2, difficult in objects
    )
    return f"<annotation>\n    <filename>{name}</filename>{entries}\n</annotation>\n"


def write_voc(root, annotations, lists, size=(60, 40)):
    """Write a directory in VOC's layout.

    Args:
        root: The directory.
        annotations: For each image its objects, as (class, xmin, ymin, xmax, ymax, difficult).
        lists: The images of each list.
        size: Width and height of all images.
    """
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, (name, objects) in enumerate(annotations.items()):
        image = random_image(i, *size)
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encode(image, "JPEG"))
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(objects, f"{name}.jpg"))
    for name, images in lists.items():
        text = "".join(f"{image}\n" for image in images)
        (root / "ImageSets/Main" / f"{name}.txt").write_text(text)


def write_coco(root, split, objects, categories, size=(60, 40)):
    """Write a JSON file of COCO and its images.

    Args:
        root: The directory.
        split: Such as `train2017`.
        objects: For each image id its objects, as entries of `annotations`.
        categories: Names by id.
        size: Width and height of all images.
    """
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image_id in objects:
        image = random_image(image_id, *size)
        (root / split / f"{image_id:012}.jpg").write_bytes(encode(image, "JPEG"))
    pairs = [(image_id, entry) for image_id, own in objects.items() for entry in own]
    content = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:012}.jpg", "width": size[0], "height": size[1]}
            for i in objects
        ],
        "annotations": [
            {"id": number, "image_id": i, "segmentation": [], **entry}
            for number, (i, entry) in enumerate(pairs)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path
