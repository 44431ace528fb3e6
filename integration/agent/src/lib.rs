//! The protocol between a test guest and the harness that runs it.
//!
//! Messages are postcard-encoded, each preceded by its length, over a virtio-serial port. The
//! program of this crate is the guest's first process and speaks the guest's side.

mod frame;
mod host_call;
mod messages;
mod needs;

pub use frame::{FrameError, MAX_FRAME, read_frame, write_frame};
pub use host_call::{HOST_SOCKET, HostCallError, call_host};
pub use messages::{
    Command, CommandEnd, CommandId, FATAL_PREFIX, HostCall, HostReply, INIT_CONFIG, InitConfig,
    LAYER, PORT_NAME, ROOT_SERIAL, Stream, ToGuest, ToHost, WindowSize,
};
pub use needs::{GuestConfig, ListedTest, Needs, SKIPPED};
