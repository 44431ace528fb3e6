complete -c vhost-device-dma -s s -l socket-path -d 'Listen on this Unix socket, which appears once the device is ready' -r -F
complete -c vhost-device-dma -l fd -d 'Listen on this inherited file descriptor instead' -r
complete -c vhost-device-dma -s c -l socket-count -d 'Number of devices; with more than one, sockets are PATH0, PATH1, ...' -r
complete -c vhost-device-dma -l memory-size -d 'Size of device memory, a multiple of 4096 [default: 64M, or the size of the memory file]' -r
complete -c vhost-device-dma -l memory-file -d 'Back device memory with this file; with several devices, with PATH0, PATH1, ...' -r -F
complete -c vhost-device-dma -l num-queues -d 'Number of request queues' -r
complete -c vhost-device-dma -l queue-size -d 'Largest size of each queue, a power of two up to 1024' -r
complete -c vhost-device-dma -l threads -d 'Number of threads that run the queues of a device, at most one per queue [default: one per queue]' -r
complete -c vhost-device-dma -l poll-us -d 'Maximum time in microseconds to busy-poll an idle queue before sleeping (adaptive; 0 disables)' -r
complete -c vhost-device-dma -l fault -d 'Inject a fault (repeatable; see below)' -r
complete -c vhost-device-dma -l seccomp -d 'What to do on unexpected system calls: none (no filter), log (allow them and log them to the kernel log), kill (kill the backend)' -r
complete -c vhost-device-dma -l metrics-socket -d 'Serve metrics in the Prometheus text format on this Unix socket (curl --unix-socket PATH http://localhost/metrics)' -r -F
complete -c vhost-device-dma -l log-level -d 'Log messages of this level and above: error, warn, info, debug, trace or off; "info,MODULE=debug" sets another level for a module [default: RUST_LOG, or info]' -r
complete -c vhost-device-dma -l print-capabilities -d 'Print the backend\'s type and features as JSON and exit, ignoring all other options'
complete -c vhost-device-dma -l access-platform -d 'Offer VIRTIO_F_ACCESS_PLATFORM, with which drivers use their DMA API (for QEMU\'s iommu_platform=on); addresses are not translated, so no IOMMU may be in between'
complete -c vhost-device-dma -l once -d 'Exit after the first front end disconnects; with several devices, after each had one'
complete -c vhost-device-dma -l share -d 'Let other processes use the memory file at the same time; several devices all use PATH itself'
complete -c vhost-device-dma -l sparse -d 'Leave holes in the memory file instead of allocating all of it at the start; a page that a full file system cannot provide later fails requests, or ends a front end that stores to it'
complete -c vhost-device-dma -l hugepages -d 'Back device memory with huge pages of the system\'s default size'
complete -c vhost-device-dma -l scrub -d 'Zero device memory when a front end disconnects; by default the next one finds what the last one left'
complete -c vhost-device-dma -l no-landlock -d 'Do not restrict access to the file system'
complete -c vhost-device-dma -s h -l help -d 'Print help'
complete -c vhost-device-dma -s V -l version -d 'Print version'
