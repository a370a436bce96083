/* helpers.h puts LINUX_VERSION_CODE into the ELF section "version"; only kprobes ever checked it, and there are none here. */
#ifndef NETPROFILER_STUB_LINUX_VERSION_H
#define NETPROFILER_STUB_LINUX_VERSION_H

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
/* The oldest kernel that we support: what BCC decides by version, it decides for that one. */
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
#endif

#endif
