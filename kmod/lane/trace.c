// SPDX-License-Identifier: GPL-2.0-only
/* The tracepoints of trace.h themselves. */
#define CREATE_TRACE_POINTS
#include "lane/trace.h"
