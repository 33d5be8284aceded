/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/image.h"

uint8_t image_zeros[IMAGE_ZEROS] __attribute__((aligned(IMAGE_ALIGN)));
