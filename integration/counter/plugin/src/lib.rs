//! The QEMU plugin that counts a guest's instructions: `-plugin PATH,counts=FILE`.
//!
//! It uses version 7 of the interface (QEMU's `include/plugins/qemu-plugin.h`), that of QEMU 11.1;
//! QEMU refuses plugins of other versions.

#![deny(missing_docs)]

use std::{
    ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
    sync::{Mutex, PoisonError},
};

use instruction_counter::{FILE_ARGUMENT, Record, Recorder};

/// Version of the plugin interface.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // QEMU expects this name.
pub static qemu_plugin_version: c_int = 7;

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback reads no registers.
const NO_REGISTERS: c_int = 0;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: u64,
        callback: extern "C" fn(block: *mut c_void, user: *mut c_void),
        user: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut c_void,
        callback: extern "C" fn(cpu: c_uint, user: *mut c_void),
        flags: c_int,
        user: *mut c_void,
    );
    fn qemu_plugin_tb_vaddr(block: *const c_void) -> u64;
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
}

/// The recorder, shared by all threads of QEMU.
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

/// Entry point, called once when QEMU has loaded the plugin; returns 0 on success.
///
/// # Safety
///
/// `arguments` must point to `count` C strings that outlive the plugin.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    let path = (0..count).find_map(|index| {
        // SAFETY: `index` is less than `count`, the number of arguments.
        let argument = unsafe { arguments.add(index) };
        // SAFETY: `argument` points to an element of `arguments`.
        let argument = unsafe { *argument };
        // SAFETY: By the contract of this function it is a C string that outlives the plugin.
        let argument = unsafe { CStr::from_ptr(argument) }.to_bytes();
        let value = argument.strip_prefix(FILE_ARGUMENT.as_bytes())?;
        Some(Path::new(OsStr::from_bytes(value.strip_prefix(b"=")?)))
    });
    let Some(path) = path else {
        eprintln!("the plugin needs the file to count in: {FILE_ARGUMENT}=PATH");
        return 1;
    };
    match Recorder::create(path) {
        Ok(recorder) => {
            *RECORDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(recorder);
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return 1;
        }
    }
    // SAFETY: The id is this plugin's, and the callback has the type that version 7 specifies.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, ptr::null_mut()) };
    0
}

/// A block has been translated.
extern "C" fn on_translation(block: *mut c_void, _user: *mut c_void) {
    // SAFETY: QEMU passes a block that is valid during the call.
    let address = unsafe { qemu_plugin_tb_vaddr(block) };
    // SAFETY: QEMU passes a block that is valid during the call.
    let instructions = unsafe { qemu_plugin_tb_n_insns(block) };
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    let record = recorder
        .as_mut()
        .and_then(|recorder| recorder.record(address, instructions as u64));
    if let Some(record) = record {
        let user = ptr::from_ref(record).cast_mut().cast();
        // SAFETY: The block is valid during the call, and `user` points to a record that is never
        // freed.
        unsafe { qemu_plugin_register_vcpu_tb_exec_cb(block, on_execution, NO_REGISTERS, user) };
    }
}

/// A block is about to be executed.
extern "C" fn on_execution(_cpu: c_uint, user: *mut c_void) {
    // SAFETY: `on_translation` passed a pointer to a record that is never freed.
    unsafe { &*user.cast::<Record>() }.enter();
}
