"""CASIA-100: its people, the order in which they are forgotten, its counts.

It has the 100 people with the most images in CASIA-WebFace (Yi et al., 2014),
aligned to 112 x 112 pixels (InsightFace's faces_webface_112x112). The authors
drew 80 % of each person's images for training, without a seed. A new copy has
the same counts, but other images in the two parts.
"""

# Folder names, sorted as strings; the position is the class id.
IDENTITIES = (
  "1005", "1014", "1022", "1039", "1147", "1154", "1226", "1236", "1245",
  "1248", "1299", "1317", "1321", "138", "14", "1466", "1542", "1595", "1649",
  "1657", "176", "1764", "18", "1822", "194", "199", "1994", "2013", "2027",
  "2059", "21", "2188", "2189", "23", "2390", "2439", "2526", "256", "2639",
  "2644", "2725", "2738", "2749", "2834", "291", "2986", "3", "3024", "308",
  "3274", "3384", "3410", "343", "3687", "37", "3989", "406", "41", "4111",
  "4238", "4290", "4312", "4362", "4401", "4478", "4670", "47", "476", "4968",
  "5065", "513", "5287", "5444", "5447", "5547", "578", "5830", "5889", "6023",
  "6049", "6090", "6224", "626", "6332", "6374", "6558", "658", "6723", "6811",
  "69", "693", "7601", "7766", "8071", "819", "8313", "8401", "872", "944",
  "956",
)  # fmt: skip

# 0 to 99, shuffled by Python's random.Random(1337). Requests forget from the
# end towards the front, so the first classes are retained longest.
ORDER = (
  83, 17, 10, 9, 89, 52, 7, 32, 37, 77, 61, 34, 78, 55, 56, 63, 69, 22, 75, 66,
  35, 72, 71, 23, 86, 38, 24, 5, 29, 30, 16, 11, 82, 19, 57, 14, 91, 27, 98, 53,
  0, 20, 59, 28, 47, 18, 6, 48, 12, 62, 1, 43, 3, 60, 41, 85, 4, 95, 97, 36, 94,
  65, 67, 99, 25, 33, 70, 40, 92, 31, 58, 15, 45, 2, 87, 76, 80, 44, 64, 8, 51,
  54, 13, 88, 84, 26, 50, 39, 96, 81, 49, 42, 21, 93, 74, 73, 46, 90, 68, 79,
)  # fmt: skip

# Images of all people, and test images of parts of ORDER, which are the
# denominators of the published accuracies.
EXPECTED = {
  "classes": IDENTITIES,
  "train_total": 35_713,
  "test_total": 8_984,
  "test_counts": (
    (ORDER[80:], 1945),
    (ORDER[60:80], 1901),
    (ORDER[40:60], 1690),
    (ORDER[20:40], 1760),
    (ORDER[:20], 1688),
    (ORDER[95:], 419),
    (ORDER[90:], 862),
    (ORDER[50:], 4658),
    (ORDER[10:], 8099),
    (ORDER[:5], 447),
    (ORDER[:10], 885),
  ),
}
